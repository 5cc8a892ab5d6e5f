CREATE TABLE products (type text PRIMARY KEY, stock integer NOT NULL, out_of_stock boolean NOT NULL DEFAULT false);
CREATE TABLE shop_status (no_specials boolean NOT NULL DEFAULT false, sales_total numeric NOT NULL DEFAULT 0);
CREATE TABLE mails (recipient text NOT NULL, subject text NOT NULL, body text NOT NULL, sent_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE config (name text PRIMARY KEY, value jsonb NOT NULL);
INSERT INTO products VALUES ('Red Bikes', 0), ('blender', 3);
INSERT INTO shop_status DEFAULT VALUES;
