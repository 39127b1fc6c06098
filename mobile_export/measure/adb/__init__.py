"""Measuring on Android phones: the adb client, the phone's facts, what is pushed, and the conditions of the runs."""
