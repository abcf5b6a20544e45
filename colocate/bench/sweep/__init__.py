"""Many runs as one measurement: arms x rates x seeds, interleaved, resumable, each against a server of its own.

plan.py      what a sweep sets out to do         arms.py      names of arms -> flags of servers
order.py     in which order, so that drift hits all alike
search.py    goodput by bisection: which run to make next, from the runs that are there
estimate.py  how long it takes                   journal.py   the folder: what is done, what is put aside
execute.py   start, run, stop, write down        table.py     what came out, in a terminal
recall.py    once per arm: does it find what stands in a prompt
"""
