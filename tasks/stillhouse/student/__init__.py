"""How a student starts."""

from stillhouse.student.initialise import layer_map, student_from_teacher

__all__ = ["layer_map", "student_from_teacher"]
