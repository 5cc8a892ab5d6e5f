-- What jobs have said of their schedules, for cluster.tell_schedule, which runs when the outcomes of this transaction are written.
SELECT set_config('cluster.next', %(said)s, true)
