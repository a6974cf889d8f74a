"""The web page: static files, no code.

What it is
----------
One page for people: the cluster's members on top, the keys on the left, one key's value on the right.
``index.html``, ``app.js``, ``style.css`` and ``icon.svg`` are served by ``kvnode.http.pages`` from this
package, below ``/ui/``. There is no build step and no framework: what is here is what the browser runs.

Invariants
----------
- It loads nothing from any other host, and runs under a content policy without ``unsafe-*``: no inline
  script, no inline style.
- What comes from the store is set as text, never as markup.
- Saving and deleting use ``cas`` with the index that was shown, so that nobody's change is overwritten
  unseen.
- A value is edited as text only if its exact bytes can be made again from what a text area holds; every
  other value is shown in hexadecimal and cannot be edited.
- Flags are read from the text of the answer: a JavaScript number would lose digits above 2^53.

What it does not do
-------------------
It has no login, since the API has none, and it shows one cluster: the one that serves it.
"""
