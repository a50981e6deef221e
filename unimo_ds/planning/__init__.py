"""What a run will need before it is started: memory, messages, time and disk, from its configuration alone (docs/plan.md).

Pure functions of numbers: `gpus` by their makers' figures, `workload` of a step, `memory` of a GPU, `traffic` between ranks,
`plan` that joins them, and `report` for people. No GPU was ever timed for it: memory and bytes are checked on CPUs
(`unimo_ds.bench.plan`), times rest on stated efficiencies.
"""
