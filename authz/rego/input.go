package rego

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Input is the input document of one request. A policy gets the part of it that
// it reads, which is made when it is needed: most look at five values of a hundred.
// It is for one goroutine at a time.
type Input struct {
	req     *authv3.CheckRequest
	options InputOptions
	// What had to be parsed to know that the request is well formed.
	path      []string
	query     url.Values
	body      ast.Value
	truncated bool
	claims    ast.Value
	// made is the document for the reads made last.
	made    ast.Value
	madeFor *reads
	// read is the hash of what was read last of it for a key.
	read    [sha256.Size]byte
	readFor *reads
}

// Document is the whole input document, for OPA's decision log. Read it only. It is
// null if a token's payload is not JSON.
func (in *Input) Document() ast.Value {
	v, err := in.document(everything)
	if err != nil {
		return ast.NullValue
	}
	return v
}

// HTTP is the request, nil if it is about a connection. Read it only.
func (in *Input) HTTP() *authv3.AttributeContext_HttpRequest {
	return in.req.GetAttributes().GetRequest().GetHttp()
}

// Expires is when a token ends that the document is about, zero for never.
func (in *Input) Expires() time.Time {
	if in.options.Token == nil {
		return time.Time{}
	}
	return in.options.Token.Expires
}

// InputOptions change how the input document is made.
type InputOptions struct {
	// SkipBody leaves parsed_body and truncated_body out.
	SkipBody bool
	// Messages describe gRPC requests whose body shall be read; nil for none.
	Messages *MessageSet
	// Token is the verified token, nil if there is none.
	Token *Token
	// TokenError says why a token that was presented is not in Token.
	TokenError string
}

// Token is what a policy gets to see of a verified JWT, as input.jwt.
type Token struct {
	Issuer string
	// Claims are the payload, in JSON; or Payload is, of a token that Envoy verified.
	Claims  []byte
	Payload *structpb.Struct
	// Expires is when the token is not accepted any more; zero for one that Envoy
	// verified, which it does for each request anew.
	Expires time.Time
}

// InputError says that a request cannot be turned into an input document: its
// path, query or body is malformed. The request has to be refused.
type InputError struct{ err error }

func (e *InputError) Error() string { return "malformed request: " + e.err.Error() }

func (e *InputError) Unwrap() error { return e.err }

// terms are fixed and therefore shared by all requests.
var (
	keyAttributes  = ast.StringTerm("attributes")
	keyVersion     = ast.StringTerm("version")
	keyParsedPath  = ast.StringTerm("parsed_path")
	keyParsedQuery = ast.StringTerm("parsed_query")
	keyParsedBody  = ast.StringTerm("parsed_body")
	keyTruncated   = ast.StringTerm("truncated_body")
	keyPrincipal   = ast.StringTerm("source_principal")
	keyJWT         = ast.StringTerm("jwt")
	keyJWTError    = ast.StringTerm("jwt_error")
	keyIssuer      = ast.StringTerm("issuer")
	keyClaims      = ast.StringTerm("claims")
	keyVerified    = ast.StringTerm("verified")
	version        = ast.ObjectTerm(
		[2]*ast.Term{ast.StringTerm("ext_authz"), ast.StringTerm("v3")},
		[2]*ast.Term{ast.StringTerm("encoding"), ast.StringTerm("protojson")})
)

// NewInput makes the document that the OPA-Envoy plugin makes: the request in
// protobuf's JSON names with unset fields left out, and parsed_path,
// parsed_query, parsed_body, truncated_body, source_principal and version. Of
// ours is jwt, {"verified": true, "issuer", "claims"}, which is there for
// verified tokens only, and jwt_error, the reason why one was not accepted. The
// error is always an *InputError.
func NewInput(req *authv3.CheckRequest, o InputOptions) (*Input, error) {
	http := req.GetAttributes().GetRequest().GetHttp()
	in := &Input{req: req, options: o}
	var err error
	if in.path, in.query, err = splitPath(http.GetPath()); err != nil {
		return nil, &InputError{err}
	}
	if !o.SkipBody {
		if in.body, in.truncated, err = parseBody(http, in.path, o.Messages); err != nil {
			return nil, &InputError{err}
		}
	}
	if o.Token != nil && o.Token.Payload == nil {
		if in.claims, err = wholeJSON(o.Token.Claims); err != nil {
			return nil, &InputError{fmt.Errorf("claims: %w", err)}
		}
	}
	return in, nil
}

// document gives what r is of the whole document, and keeps it. The error is about
// a token's payload.
func (in *Input) document(r *reads) (ast.Value, error) {
	if in.madeFor != r {
		v, err := in.make(r)
		if err != nil {
			return nil, err
		}
		in.made, in.madeFor = v, r
	}
	return in.made, nil
}

// make makes a document.
func (in *Input) make(r *reads) (ast.Value, error) {
	o := newObject(8, r)
	a := in.req.GetAttributes()
	if at := r.at("attributes"); a != nil && at != nil {
		o.Insert(keyAttributes, attributes(a, at))
	}
	if r.at("version") != nil {
		o.Insert(keyVersion, version)
	}
	if r.at("parsed_path") != nil {
		o.Insert(keyParsedPath, stringList(in.path))
	}
	if r.at("parsed_query") != nil {
		o.Insert(keyParsedQuery, valuesObject(in.query))
	}
	if in.body != nil && r.at("parsed_body") != nil {
		o.Insert(keyParsedBody, ast.NewTerm(in.body))
	}
	if in.body != nil && r.at("truncated_body") != nil {
		o.Insert(keyTruncated, ast.InternedTerm(in.truncated))
	}
	if p := a.GetSource().GetPrincipal(); p != "" && r.at("source_principal") != nil {
		o.Insert(keyPrincipal, ast.StringTerm(p))
	}
	if e := in.options.TokenError; e != "" && r.at("jwt_error") != nil {
		o.Insert(keyJWTError, ast.StringTerm(e))
	}
	if at := r.at("jwt"); in.options.Token != nil && at != nil {
		jwt, err := in.token(in.options.Token, at)
		if err != nil {
			return nil, fmt.Errorf("claims: %w", err)
		}
		o.Insert(keyJWT, jwt)
	}
	return o.Object, nil
}

func (in *Input) token(t *Token, r *reads) (*ast.Term, error) {
	o := newObject(3, r)
	if r.at("verified") != nil {
		o.Insert(keyVerified, ast.InternedTerm(true))
	}
	if r.at("issuer") != nil {
		o.Insert(keyIssuer, ast.StringTerm(t.Issuer))
	}
	if at := r.at("claims"); at != nil {
		claims := in.claims
		if t.Payload != nil {
			var err error
			if claims, err = payload(t.Payload, at); err != nil {
				return nil, err
			}
		} else if all, ok := claims.(ast.Object); ok {
			claims = only(all, at)
		}
		o.Insert(keyClaims, ast.NewTerm(claims))
	}
	return ast.NewTerm(o.Object), nil
}

// only keeps what r is of an object, one level down.
func only(all ast.Object, r *reads) ast.Value {
	if r.all {
		return all
	}
	o := ast.NewObjectWithCapacity(len(r.keys))
	for _, k := range r.keys {
		name := ast.StringTerm(k.name)
		if v := all.Get(name); v != nil {
			o.Insert(name, v)
		}
	}
	return o
}

// payload turns claims as Envoy gives them into those that JSON would give.
func payload(s *structpb.Struct, r *reads) (ast.Value, error) {
	if r.all {
		b, err := s.MarshalJSON()
		if err != nil {
			return nil, err
		}
		return wholeJSON(b)
	}
	o := ast.NewObjectWithCapacity(len(r.keys))
	for _, k := range r.keys {
		v := s.GetFields()[k.name]
		if v == nil {
			continue
		}
		var x ast.Value
		if text, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			x = ast.String(text.StringValue)
		} else {
			b, err := v.MarshalJSON()
			if err == nil {
				x, err = wholeJSON(b)
			}
			if err != nil {
				return nil, err
			}
		}
		o.Insert(ast.StringTerm(k.name), ast.NewTerm(x))
	}
	return o, nil
}

// splitPath decodes and splits the path, and parses the query.
func splitPath(raw string) ([]string, url.Values, error) {
	rawPath, rawQuery, _ := strings.Cut(raw, "?")
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		return nil, nil, fmt.Errorf("path: %w", err)
	}
	parts := strings.Split(strings.TrimLeft(path, "/"), "/")
	if rawQuery == "" {
		return parts, nil, nil
	}
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("query: %w", err)
	}
	return parts, query, nil
}

// object collects the fields of a message that are set.
type object struct{ ast.Object }

// newObject makes an object for what r is of so many fields.
func newObject(fields int, r *reads) object {
	if !r.all {
		fields = len(r.keys)
	}
	return object{ast.NewObjectWithCapacity(fields)}
}

func (o object) str(key, value string, r *reads) {
	if value != "" && r.at(key) != nil {
		o.Insert(ast.InternedTerm(key), ast.StringTerm(value))
	}
}

func (o object) num(key string, value int64, r *reads) {
	if value != 0 && r.at(key) != nil {
		o.Insert(ast.InternedTerm(key), ast.NewTerm(ast.MustInterfaceToValue(value)))
	}
}

// term inserts what value gives for a field that is read, unless that is nil.
func (o object) term(key string, r *reads, value func(*reads) *ast.Term) {
	at := r.at(key)
	if at == nil {
		return
	}
	if t := value(at); t != nil {
		o.Insert(ast.InternedTerm(key), t)
	}
}

func (o object) strings(key string, m map[string]string, r *reads) {
	at := r.at(key)
	if len(m) == 0 || at == nil {
		return
	}
	x := newObject(len(m), at).Object
	if !at.all {
		for _, k := range at.keys {
			if v, ok := m[k.name]; ok {
				x.Insert(nameTerm(k.name), ast.StringTerm(v))
			}
		}
		o.Insert(ast.InternedTerm(key), ast.NewTerm(x))
		return
	}
	// One allocation for all terms, and none for the names that are in every
	// request: this is where most of the document's memory comes from.
	terms := make([]ast.Term, 2*len(m))
	for k, v := range m {
		name := commonHeaders[k]
		if name == nil {
			name, terms = &terms[0], terms[1:]
			name.Value = ast.String(k)
		}
		value := &terms[0]
		terms = terms[1:]
		value.Value = ast.String(v)
		x.Insert(name, value)
	}
	o.Insert(ast.InternedTerm(key), ast.NewTerm(x))
}

func nameTerm(name string) *ast.Term {
	if t := commonHeaders[name]; t != nil {
		return t
	}
	return ast.StringTerm(name)
}

// commonHeaders are the terms of names that most requests have.
var commonHeaders = func() map[string]*ast.Term {
	m := make(map[string]*ast.Term)
	for _, name := range []string{
		":authority", ":method", ":path", ":scheme", "accept", "accept-encoding", "accept-language", "authorization", "cache-control",
		"content-length", "content-type", "cookie", "forwarded", "grpc-timeout", "host", "origin", "referer", "te", "traceparent", "tracestate",
		"user-agent", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid", "x-envoy-attempt-count",
		"x-envoy-auth-partial-body", "x-envoy-decorator-operation", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address",
		"x-envoy-internal", "x-envoy-original-path", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-forwarded-client-cert",
		"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "writ.policies",
	} {
		m[name] = ast.StringTerm(name)
	}
	return m
}()

// attributes is written out, where a walk over the message's descriptor would
// do, because it is on the path of every request; a test holds the two equal.
func attributes(a *authv3.AttributeContext, r *reads) *ast.Term {
	o := newObject(8, r)
	o.term("source", r, func(r *reads) *ast.Term { return peer(a.GetSource(), r) })
	o.term("destination", r, func(r *reads) *ast.Term { return peer(a.GetDestination(), r) })
	o.term("request", r, func(r *reads) *ast.Term { return requestTerm(a.GetRequest(), r) })
	o.strings("contextExtensions", a.GetContextExtensions(), r)
	o.term("metadataContext", r, func(*reads) *ast.Term { return reflected(a.GetMetadataContext()) })
	o.term("routeMetadataContext", r, func(*reads) *ast.Term { return reflected(a.GetRouteMetadataContext()) })
	o.term("tlsSession", r, func(r *reads) *ast.Term {
		t := a.GetTlsSession()
		if t == nil {
			return nil
		}
		x := newObject(1, r)
		x.str("sni", t.GetSni(), r)
		return ast.NewTerm(x.Object)
	})
	return ast.NewTerm(o.Object)
}

func reflected[M interface {
	comparable
	proto.Message
}](m M) *ast.Term {
	var none M
	if m == none {
		return nil
	}
	return message(m.ProtoReflect())
}

func requestTerm(q *authv3.AttributeContext_Request, r *reads) *ast.Term {
	if q == nil {
		return nil
	}
	o := newObject(2, r)
	o.term("time", r, func(*reads) *ast.Term { return timestamp(q.GetTime()) })
	o.term("http", r, func(r *reads) *ast.Term { return httpRequest(q.GetHttp(), r) })
	return ast.NewTerm(o.Object)
}

func peer(p *authv3.AttributeContext_Peer, r *reads) *ast.Term {
	if p == nil {
		return nil
	}
	o := newObject(5, r)
	o.term("address", r, func(r *reads) *ast.Term { return address(p.GetAddress(), r) })
	o.str("service", p.GetService(), r)
	o.strings("labels", p.GetLabels(), r)
	o.str("principal", p.GetPrincipal(), r)
	o.str("certificate", p.GetCertificate(), r)
	return ast.NewTerm(o.Object)
}

func address(a *corev3.Address, r *reads) *ast.Term {
	if a == nil {
		return nil
	}
	s, ok := a.GetAddress().(*corev3.Address_SocketAddress)
	if !ok || s.SocketAddress.GetNetworkNamespaceFilepath() != "" {
		return message(a.ProtoReflect())
	}
	switch s.SocketAddress.GetPortSpecifier().(type) {
	case nil, *corev3.SocketAddress_PortValue:
	default:
		return message(a.ProtoReflect())
	}
	at := r.at("socketAddress")
	if at == nil {
		return ast.NewTerm(ast.NewObject())
	}
	o := newObject(4, at)
	o.num("protocol", int64(s.SocketAddress.GetProtocol()), at)
	o.str("address", s.SocketAddress.GetAddress(), at)
	// A member of a oneof is there whenever it was chosen, zero or not. A client's
	// port is another one at each connection.
	if _, ok := s.SocketAddress.GetPortSpecifier().(*corev3.SocketAddress_PortValue); ok && at.at("portValue") != nil {
		o.Insert(ast.InternedTerm("portValue"), ast.NewTerm(ast.MustInterfaceToValue(int64(s.SocketAddress.GetPortValue()))))
	}
	o.str("resolverName", s.SocketAddress.GetResolverName(), at)
	if s.SocketAddress.GetIpv4Compat() && at.at("ipv4Compat") != nil {
		o.Insert(ast.InternedTerm("ipv4Compat"), ast.InternedTerm(true))
	}
	return ast.ObjectTerm([2]*ast.Term{ast.InternedTerm("socketAddress"), ast.NewTerm(o.Object)})
}

func timestamp(t *timestamppb.Timestamp) *ast.Term {
	if t == nil {
		return nil
	}
	o := newObject(2, everything)
	o.num("seconds", t.GetSeconds(), everything)
	o.num("nanos", int64(t.GetNanos()), everything)
	return ast.NewTerm(o.Object)
}

func httpRequest(h *authv3.AttributeContext_HttpRequest, r *reads) *ast.Term {
	if h == nil {
		return nil
	}
	o := newObject(12, r)
	o.str("id", h.GetId(), r)
	o.str("method", h.GetMethod(), r)
	o.strings("headers", h.GetHeaders(), r)
	o.term("headerMap", r, func(*reads) *ast.Term { return reflected(h.GetHeaderMap()) })
	o.str("path", h.GetPath(), r)
	o.str("host", h.GetHost(), r)
	o.str("scheme", h.GetScheme(), r)
	o.str("query", h.GetQuery(), r)
	o.str("fragment", h.GetFragment(), r)
	o.num("size", h.GetSize(), r)
	o.str("protocol", h.GetProtocol(), r)
	o.str("body", h.GetBody(), r)
	o.term("rawBody", r, func(*reads) *ast.Term { return bytesTerm(h.GetRawBody()) })
	return ast.NewTerm(o.Object)
}

func stringList(list []string) *ast.Term {
	terms, refs := make([]ast.Term, len(list)), make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i].Value = ast.String(s)
		refs[i] = &terms[i]
	}
	return ast.ArrayTerm(refs...)
}

func valuesObject(v map[string][]string) *ast.Term {
	o := ast.NewObjectWithCapacity(len(v))
	for k, list := range v {
		o.Insert(ast.StringTerm(k), stringList(list))
	}
	return ast.NewTerm(o)
}
