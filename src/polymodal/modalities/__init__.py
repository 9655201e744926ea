"""The kinds of input. A part is known once its file is imported: to add one, write its file and name it here."""
