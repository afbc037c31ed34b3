"""Events of notes while a recording or a live input is decoded."""
