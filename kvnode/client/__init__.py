"""To be written with the package."""
