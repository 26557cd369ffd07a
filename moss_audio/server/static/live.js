export class Live { stop() {} }
