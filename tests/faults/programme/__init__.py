"""The fault programme: real servers and brokers, killed and stopped and cut, and whether they lied about it.

``python -m tests.faults.programme``, or ``make faults``; README.md says how it works and how to read it.
"""
