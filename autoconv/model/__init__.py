"""What is expected of a candidate that was not timed.

Serving, without scikit-learn:

    advisers      which model advises on a device, or why none does
    cost_model    a model: its parts, its advice on a problem, its file
    features      what it sees of a problem and of each candidate
    forest        its trees, as arrays
    bounds        its intervals, and what follows from them
    advice        what it says of a problem
    counsel       what the dispatcher makes of that, by policy
    shelf         where models are kept, and which files are read

Training and judging:

    learning      from files of measurements to a model that is kept
    examples      what was measured, and which networks it belongs to
    training      from examples to a model with its card
    fitting       from examples to trees, by scikit-learn
    validation    what a model says of problems that it did not see
    choices       what a way of deciding does with a measured problem
    baselines     other ways to decide
    card          how good all of them are
    evaluation    a card made again, or of other problems

Without measurements, or to be read:

    routes        the kernels that MLX takes on Metal
    prior         an order of candidates that follows from them
    rule          a small tree that people can read
"""
