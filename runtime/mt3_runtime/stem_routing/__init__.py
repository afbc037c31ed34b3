"""Which files of a separated song hold what, and with which instruments they are transcribed."""
