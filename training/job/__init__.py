"""The job around a trainer's loop: where it runs, what it keeps, and what it tells.

`fit` trains once, `search` tries several sets of options; `training.run` calls both. `loop` is the trainer's side
(`training.ports.Loop`), `checkpoint` what survives a kill, `channel` what travels between workers and driver, `cluster`
the Ray that they run on. All of it lies in one folder, `task.work/.job`, which every node of the job has to see.
"""
