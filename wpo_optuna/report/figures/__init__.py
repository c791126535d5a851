"""The figures of a report: each a function from what is known of a study to a matplotlib figure.

Where there is nothing to draw, the function returns a sentence that says why.
"""
