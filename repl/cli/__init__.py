"""The command line: it reads the arguments, wires everything together and serves lines; also the Python face."""
