"""`colocate profile`: measure the two workers of this device, fit the latency model, show what came out."""
