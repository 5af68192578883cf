-- Runs once, when the database server is made: a database for Airflow and one for MLflow, each with an owner who sees no other.
\set airflow_password `cat /run/secrets/airflow-database-password`
\set mlflow_password `cat /run/secrets/mlflow-database-password`
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE airflow, mlflow, postgres FROM PUBLIC;
