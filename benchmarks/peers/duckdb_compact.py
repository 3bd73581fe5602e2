"""Converts nginx's JSON log to Parquet with DuckDB, as an analyst would. Usage: duckdb_compact.py LOG OUT"""

import sys

import duckdb

log, output = sys.argv[1:]
duckdb.execute("SET preserve_insertion_order = false")
duckdb.execute(
    """
    COPY (
        WITH events AS (
            SELECT
                to_timestamp(time::DOUBLE) AS receivedAt, remote_addr, user_agent, referer, query,
                map_from_entries(list_transform(
                    string_split(query, '&'),
                    lambda pair: {
                        'key': url_decode(split_part(pair, '=', 1)),
                        'value': url_decode(replace(substr(pair, strpos(pair, '=') + 1), '+', ' '))
                    }
                )) AS params
            FROM read_json($log, format = 'newline_delimited', columns = {
                time: 'VARCHAR', remote_addr: 'VARCHAR', forwarded_for: 'VARCHAR', user_agent: 'VARCHAR',
                referer: 'VARCHAR', query: 'VARCHAR'
            })
        )
        SELECT
            receivedAt, remote_addr, user_agent, referer, query,
            TRY_CAST(params['eventType'] AS INTEGER) AS eventType,
            TRY_CAST(params['partnerId'] AS BIGINT) AS partnerId,
            params['entryId'] AS entryId,
            params['sessionId'] AS sessionId,
            TRY_CAST(params['eventIndex'] AS BIGINT) AS eventIndex,
            TRY_CAST(params['position'] AS DOUBLE) AS position,
            TRY_CAST(params['playTimeSum'] AS DOUBLE) AS playTimeSum,
            TRY_CAST(params['bufferTime'] AS DOUBLE) AS bufferTime,
            TRY_CAST(params['actualBitrate'] AS DOUBLE) AS actualBitrate,
            params['deliveryType'] AS deliveryType,
            params['playbackType'] AS playbackType,
            params['userId'] AS userId,
            params['referrer'] AS referrer,
            params
        FROM events
        ORDER BY partnerId, entryId, sessionId, receivedAt
    ) TO '"""
    + output.replace("'", "''")
    + "' (FORMAT parquet, COMPRESSION zstd)",
    {"log": log},
)
