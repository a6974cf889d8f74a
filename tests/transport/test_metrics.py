from kvnode.transport.metrics import LOGGED_MAX, PEERS_MAX, LogBrake, TransportMetrics


def test_one_line_per_key_and_interval():
    brake = LogBrake(interval_s=10, total_per_interval=5)
    assert brake.allows("a", 0.0)
    assert not brake.allows("a", 9.9)
    assert brake.allows("b", 5.0)
    assert brake.allows("a", 10.0)


def test_a_flood_from_many_keys_is_bounded_too():
    """Lines and memory."""
    brake = LogBrake(interval_s=10, total_per_interval=5)
    assert sum(brake.allows(f"k{n}", n / 1000) for n in range(5000)) == 5
    brake = LogBrake(interval_s=10, total_per_interval=10**9)
    for n in range(5000):
        brake.allows(f"k{n}", 0.0)
    assert len(brake._next) == LOGGED_MAX


def test_counters_of_peers_are_bounded():
    metrics = TransportMetrics()
    for n in range(PEERS_MAX + 10):
        metrics.peer(f"p{n}").dropped += 1
    assert len(metrics.peers) == PEERS_MAX
    assert metrics.peer(f"p{PEERS_MAX + 9}").dropped == 1
