from gendistill.cli import entry

entry()
