"""The contracts of the slots, as tests: what every provider must do, stock CrewAI included.

One module for each slot. A test that CrewAI's own code fails is marked ``stock_defect`` with what
goes wrong: it is expected to fail there, and only there, and if it passes the claim is withdrawn.

Run them for your distribution with::

    pytest --pyargs crewai_native.testing.contract --provider my-distribution
"""
