package sds

import (
	"slices"
	"strconv"
)

// event is what a request says about an earlier response.
type event int

const (
	// none: nothing, or about a response that this stream never sent.
	none event = iota
	acked
	nacked
)

// maxPending bounds how many responses may be without an answer before the
// oldest is no longer waited for.
const maxPending = 16

// nonces numbers the responses of one stream and knows which are unanswered.
type nonces struct {
	last    uint64
	pending []string
}

func (n *nonces) next() string {
	n.last++
	nonce := strconv.FormatUint(n.last, 10)
	if n.pending = append(n.pending, nonce); len(n.pending) > maxPending {
		n.pending = n.pending[1:]
	}
	return nonce
}

// answered takes the nonce of a request; each counts once.
func (n *nonces) answered(nonce string, refused bool) event {
	i := slices.Index(n.pending, nonce)
	if i < 0 {
		return none
	}
	n.pending = slices.Delete(n.pending, i, i+1)
	if refused {
		return nacked
	}
	return acked
}

// current tells whether nonce is that of the newest response.
func (n *nonces) current(nonce string) bool { return nonce == strconv.FormatUint(n.last, 10) }
