package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"time"
)

// refusals are when Envoys refused a certificate that was revoked.
type refusals struct {
	// live are those on a connection that was open before, and fresh those of new ones.
	live, fresh []time.Duration
	// lost are when a connection that was open ended, or was replaced, before it was
	// refused: that may be because of the revocation, or by chance before it, so it is
	// counted apart.
	lost []time.Duration
}

func (r *refusals) add(more refusals) {
	r.live, r.fresh, r.lost = append(r.live, more.live...), append(r.fresh, more.fresh...), append(r.lost, more.lost...)
}

// rows tells of the refusals of many Envoys.
func (r *refusals) rows(envoys int) []row {
	const goal = "goal p99 1 s"
	name := fmt.Sprintf("revocation to refusal in %d Envoys, ", envoys)
	lost := row{name: "  live connections lost before they were refused", note: fmt.Sprintf("%d of %d", len(r.lost), len(r.lost)+len(r.live))}
	if len(r.lost) > 0 {
		lost.note += fmt.Sprintf(", the first after %.1f ms, the last after %.1f ms", milliseconds(slices.Min(r.lost)), milliseconds(slices.Max(r.lost)))
	}
	var out []row
	if len(r.live) > 0 {
		out = append(out, goalRow(name+"live connections", r.live, goal))
	}
	out = append(out, lost)
	if len(r.fresh) > 0 {
		out = append(out, goalRow(name+"new connections", r.fresh, goal))
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// refusedThere asks on the connection that a client has open until the answer is 403; lost says that the connection
// ended before, or another took its place.
func refusedThere(ctx context.Context, open *http.Client, address string) (lost bool, err error) {
	err = wait(ctx, address, func() (bool, string) {
		got, same, err := status(ctx, open, address)
		lost = ctx.Err() == nil && (err != nil || !same)
		return lost || same && got == http.StatusForbidden, fmt.Sprint("open connection: ", got, err)
	})
	return lost && err == nil, err
}

// status gives the answer to a request; same says that it was made on a connection that the client had before.
func status(ctx context.Context, c *http.Client, address string) (code int, same bool, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { same = i.Reused }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", http.NoBody)
	if err != nil {
		return 0, false, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, same, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, same, err
}
