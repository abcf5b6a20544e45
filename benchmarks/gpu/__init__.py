"""The sections of `benchmarks/gpu_suite.py`: what the GPU backend does on a real device, beside what it could do."""
