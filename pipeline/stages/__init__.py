"""One module for each box of the processing diagram: functions over arrays, without clocks or sockets."""
