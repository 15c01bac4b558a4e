"""What an evaluation says instead of a traceback."""


class EvaluationError(ValueError):
    """Images, prompts, recognitions or options that an evaluation cannot use; one sentence that says what to do."""
