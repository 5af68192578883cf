"""From a teacher's answers to a data set: filters, verifiers, the trace audit, diversity, the
quality filter, the card."""
