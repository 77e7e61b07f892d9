"""What every program's runs share: run directories, execution, the command line, statistics, figures, pages."""
