"""A model of KEDA, of Kubernetes' autoscaler and of nodes that come and go, around the SQL that says how many nodes are wanted."""
