-- What the job of Attics reads and writes.
CREATE TABLE bands (
    id   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE,
    url  text NOT NULL
);
CREATE TABLE recordings (
    band_id uuid NOT NULL REFERENCES bands ON DELETE CASCADE,
    title   text NOT NULL,
    PRIMARY KEY (band_id, title)
);
