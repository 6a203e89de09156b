"""PyCounter beside its peers, on this machine, in one run: `python -m bench.peers --help`.

Reading order: `peers` (what is started), `servers` (how), `load` (one sample, and rounds of them), `scenarios/` (what
is compared, a file for each kind), `table` (what comes out), `results` (where to).
"""
