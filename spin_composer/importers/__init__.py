"""YAMLs of other trainers as YAMLs of SPIN, each change explained."""
