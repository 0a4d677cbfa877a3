"""What Airflow needs beside the DAG files: the form, the tasks, the asset, and how a component is started."""
