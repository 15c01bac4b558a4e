"""How training is started on more than one process or machine."""
