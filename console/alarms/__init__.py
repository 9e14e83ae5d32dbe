"""Alarms: somebody is told when an endpoint goes quiet, or when a part of the installation needs a person.

The way of an alarm: `world.py` looks (Redis, PostgreSQL, the spool), `findings.py` says what is wrong with what it saw,
`incidents.py` makes incidents of it, `ledger.py` keeps them, `channels.py` tells people. `rhythm.py` knows how long an
endpoint may be silent. `watch.py` puts the parts together, `commands.py` is the `reservoir alarms` command.
"""
