package relay

import "slices"

// maxUnanswered bounds how many responses of one type may wait to be answered.
const maxUnanswered = 64

// unanswered are the responses of one type that the proxy has not answered yet.
// P is a pointer to a response; the zero value is ready.
type unanswered[P interface {
	comparable
	GetNonce() string
}] struct {
	byNonce map[string]P
	order   []string // of the nonces, oldest first
}

// add keeps a response in place of one with the same nonce, and forgets the
// oldest if there are too many.
func (u *unanswered[P]) add(resp P) {
	if u.byNonce == nil {
		u.byNonce = make(map[string]P)
	}
	if len(u.order) >= maxUnanswered {
		u.take(u.order[0])
	}
	u.take(resp.GetNonce())
	u.byNonce[resp.GetNonce()] = resp
	u.order = append(u.order, resp.GetNonce())
}

// take gives the response with that nonce and forgets it; nil if there is none.
func (u *unanswered[P]) take(nonce string) P {
	resp, ok := u.byNonce[nonce]
	if ok {
		delete(u.byNonce, nonce)
		u.order = slices.DeleteFunc(u.order, func(n string) bool { return n == nonce })
	}
	return resp
}
