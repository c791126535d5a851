"""The figures of a report, one subject in each module."""
