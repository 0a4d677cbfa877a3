"""Empty, and needed: without such a module on its path Airflow does not ask cluster policies about unmapped tasks.

It lies in $AIRFLOW_HOME/config, or in any folder on PYTHONPATH, of the scheduler and of the api-server. The policy
itself is `fleetmark_airflow.routing`, which Airflow finds by its entry point.
"""
