"""The stack of compose.yaml from the packages of the system, on ports of its own.

``ports`` says where each part listens, ``parts`` how it is started and what it says of itself,
``running`` starts all of them and ends them. ``python -m examples.deployment.stack`` shows it.
"""
