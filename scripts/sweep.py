"""Times the convolutions of workloads on this device: `autoconv sweep`, without installing the command."""

from autoconv.cli.sweep import sweep

if __name__ == "__main__":
    sweep()
