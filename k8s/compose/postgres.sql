-- MLflow's tables have a database of their own. Run once, when the volume is new.
CREATE DATABASE mlflow OWNER palate;
