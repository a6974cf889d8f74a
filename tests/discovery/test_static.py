import pytest

from kvnode.discovery.seeds import Seed
from kvnode.discovery.static import parse_retry_join
from kvnode.errors import BadRequest


def test_every_spelling_with_and_without_a_port():
    values = [
        "kvnode-0",
        "kvnode-1.kvnode:8301",
        "10.0.0.1",
        "[fd00::1]:9000",
        "[fd00::2]",
        "fd00::3",
    ]
    assert parse_retry_join(values, 8300) == [
        Seed("kvnode-0", "kvnode-0:8300"),
        Seed("kvnode-1", "kvnode-1.kvnode:8301"),
        Seed("", "10.0.0.1:8300"),
        Seed("", "[fd00::1]:9000"),
        Seed("", "[fd00::2]:8300"),
        Seed("", "[fd00::3]:8300"),
    ]


def test_the_order_is_kept_and_repetitions_and_blanks_are_dropped():
    """Templates produce empty values; people repeat themselves."""
    seeds = parse_retry_join(["b", "", " a ", "b:8300"], 8300)
    assert [seed.address for seed in seeds] == ["b:8300", "a:8300"]


@pytest.mark.parametrize(
    "value", [":8300", "a:port", "a:99999", "a:-1", "[::1", "a b", "a:0", "provider=aws tag_key=x"]
)
def test_what_is_no_address_is_refused_by_name(value):
    with pytest.raises(BadRequest, match="retry-join"):
        parse_retry_join([value], 8300)
