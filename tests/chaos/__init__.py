"""Faults on purpose: what is lost when a training is killed, cut off from power, from its disk or its numbers.

    PYTHONPATH=tests python -m chaos                  every bar, in about a quarter of an hour on two cores
    PYTHONPATH=tests python -m chaos kills bit-rot    some of them; --short for a few seconds each
    PYTHONPATH=tests python -m chaos kills --run DIR --state 'DIR/last/*.pt' -- COMMAND …   of another program

A bar is one number, printed as one line of JSON. Most need only a training command, a folder that it keeps its run in
and the files of its final state, so that programs can be compared; what they need of swindow stands in `ours`.
"""
