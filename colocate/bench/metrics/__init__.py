"""One function per metric, from raw rows and samples; each says its formula and its unit. docs/metrics.md lists them.

latency       of one request: TTFT, ITL, TPOT, end to end, stages, lateness of the client
distribution  percentiles and mean of many
window        which rows and which seconds count
attainment    promises kept, over all, by target, by class; goodput
denominators  what others divide by
throughput    tokens and requests per second
server        KV, cache, preemptions, energy, memory
"""
