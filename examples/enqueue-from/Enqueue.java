// Java with the JDBC driver on the class path: java -cp postgresql.jar Enqueue.java
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;

public class Enqueue {
    static final String NOW = "INSERT INTO email_customers_jobs (customer_id) VALUES (?) RETURNING id";
    static final String TOMORROW = "INSERT INTO email_customers_jobs (customer_id, run_at, queue, priority)"
        + " VALUES (?, now() + interval '1 day', ?, ?)";
    static final String MANY = "INSERT INTO email_customers_jobs (customer_id) SELECT unnest(?::integer[])";

    public static void main(String[] arguments) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        try (Connection connection = DriverManager.getConnection(url, System.getenv("PGUSER"), System.getenv("PGPASSWORD"))) {
            // Now. RETURNING id needs SELECT on that column.
            try (PreparedStatement statement = connection.prepareStatement(NOW)) {
                statement.setInt(1, 1);
                ResultSet rows = statement.executeQuery();
                rows.next();
                System.out.println("enqueued " + rows.getLong("id"));
            }

            // Tomorrow, by the database's clock.
            run(connection, TOMORROW, 2, "bulk", 90);

            // Many, in one statement.
            run(connection, MANY, connection.createArrayOf("integer", new Object[] {1, 2, 3}));

            // With the customer, or not at all.
            connection.setAutoCommit(false);
            try {
                run(connection, "INSERT INTO customers (id) VALUES (?)", 4);
                run(connection, "INSERT INTO email_customers_jobs (customer_id) VALUES (?)", 4);
                throw new IllegalStateException("no stock");
            } catch (IllegalStateException error) {
                connection.rollback();
            }
        }
    }

    static void run(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            statement.executeUpdate();
        }
    }
}
