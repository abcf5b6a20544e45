"""The proof that co-location is in force on this GPU: what `colocate doctor` runs.

`catalogue.py` names every check; `environment.py` looks, without touching the GPU; `crew.py` starts real processes (MPS
clients of a private daemon), `worker.py` is what they run, and the other files each hold the checks of one promise.
"""
