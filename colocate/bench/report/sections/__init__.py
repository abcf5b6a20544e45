"""What the report asks of the evidence, one module per group of questions. Each makes sections out of numbers; none
draws or formats a page.

    rates        attainment and goodput against rate
    latency      distributions, percentiles, the frontier of TTFT against TPOT
    plans        what was in force, when it changed, and what waited meanwhile
    server       KV, memory and energy
    failures     what did not finish, and which promise was broken
    definitions  published SLOs and denominators from the same log
    scales       tighter and looser targets from the same log
    shares       share against rate; partition and scheduler apart
    arms         what was compared, in words and by its settings
    trust        what may be wrong with it
    reproduce    how to repeat it
"""
