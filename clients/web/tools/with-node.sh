#!/bin/sh
# Runs a command line with the Node that runs npm first in the PATH: where Node came as a Python wheel, no other may be installed.
PATH="$(dirname "${npm_node_execpath:?run this through npm}"):$PATH" exec sh -c "$1"
