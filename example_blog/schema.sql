-- Creates the tables anew: what they contain is deleted.
DROP TABLE IF EXISTS post;
DROP TABLE IF EXISTS author;

CREATE TABLE author (
    id INTEGER PRIMARY KEY AUTO_INCREMENT,
    name VARCHAR(50) NOT NULL UNIQUE,
    password TEXT NOT NULL
) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE post (
    id INTEGER PRIMARY KEY AUTO_INCREMENT,
    author_id INTEGER NOT NULL,
    created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    FOREIGN KEY (author_id) REFERENCES author (id)
) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
