"""The parts of `benchmarks/fidelity.py` and `benchmarks/live_policies.py`: one arm live and simulated, and how far
apart the two are."""
