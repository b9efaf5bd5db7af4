"""How much a token, a start, a reader cost: this server against others, in one run on one machine.

    python3 -m venv .venv && .venv/bin/pip install -q -r tests/bench/requirements.txt
    .venv/bin/python -m tests.bench

Every server runs the same graph around the same model and sends the same events. They run one at a
time, on a core of their own; the load, and what plays the model's provider, run on another. A pass
measures each in turn, and several passes show how far the figures can be trusted: what counts is
the ratio of two servers in the same pass, its median over the passes and how far it spreads. An
answer that lacks a token, or its end, makes the measurement void.

Read `servers` (who is measured), `works` (what is measured), then `report`.
"""
